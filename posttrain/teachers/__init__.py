"""Teachers of a student: local models, the student without adapters, vLLM servers; and scores kept on disk."""
