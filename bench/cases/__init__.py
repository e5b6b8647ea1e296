"""What is measured: a group of cases a module, each with its own servers."""
