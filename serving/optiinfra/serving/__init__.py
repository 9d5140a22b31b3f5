"""What is known about engines, GPUs and prices; pure."""
