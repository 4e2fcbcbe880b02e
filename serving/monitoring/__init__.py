"""What is watched of a model that serves: its answers, its input, and the truth that comes later."""
