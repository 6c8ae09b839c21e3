"""File formats that checkpoints come in: each module reads (and some write) one, a tensor at a time."""
