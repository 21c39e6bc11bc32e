"""vLLM servers for rollouts and teachers: how one is started, and what it has beyond vLLM's own."""
