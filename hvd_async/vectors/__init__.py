"""Named tensors as one flat float32 vector, and arithmetic over whole vectors: in C, torch and CUDA with the same bits."""
