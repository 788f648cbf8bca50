"""What published results say about methods, ranks and learning rates: the fits behind `autopeft suggest`."""
