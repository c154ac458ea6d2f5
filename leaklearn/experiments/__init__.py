"""The measurements that the notebooks tell about: bench and rounds, and one module for each notebook, by its name."""
