"""The tasks that can be trained: the `Task` protocol, the gradient of a batch, and the tasks themselves."""
