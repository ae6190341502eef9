"""A stand-in for the package that RTMaps gives to its Python blocks; see ``rtmaps.standin``.

It needs no more than Python 3.5, and refuses what the runtime refuses.
"""


class RefusedError(Exception):
    """The block did what the runtime refuses; the message says what."""
