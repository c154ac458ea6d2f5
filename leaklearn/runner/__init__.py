"""The runner: which notebooks run with which parameters, running them, and telling how far they are."""
