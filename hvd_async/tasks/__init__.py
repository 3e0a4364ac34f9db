"""What is trained: `Task`, the gradient of a batch, and the tasks themselves."""
