"""Text towers, their sentence embeddings, and prompts."""
