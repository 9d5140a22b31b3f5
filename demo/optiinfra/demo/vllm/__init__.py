"""The loop on a real engine: a badly configured vLLM server is found, tuned and rolled out."""
