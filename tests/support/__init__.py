"""What tests share: processes to kill, servers to talk to, corpora and checkpoints to make."""
