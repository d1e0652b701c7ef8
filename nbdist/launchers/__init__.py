"""Turn a configuration into running ranks. Knows processes and files, nothing of cells."""
