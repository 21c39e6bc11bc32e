"""Teachers of a student: a local model, the student without its adapters, or a vLLM server; with scores kept on disk."""
