"""Training: the task, its losses, checkpoints and run records.

Nothing is imported here: a checkpoint is read without Lightning, a record without torch.
"""
