"""The engine's one error."""


class SpatialError(ValueError):
    """Something can't be kept exact, or tiles and layouts do not fit together.

    The message names the operation and the global shape, then what to do. Every decision to raise
    is made from what all ranks know, so that all ranks raise together and none waits for another.
    """
