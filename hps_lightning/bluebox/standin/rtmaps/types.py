"""Types of ports and properties, and what travels through them.

Their numbers differ between versions of RTMaps; these are of none, so that a block which holds
numbers of its own fails here.
"""

ANY = 7001
AUTO = 7013
INTEGER32 = 7027
INTEGER64 = 7039
FLOAT32 = 7043
FLOAT64 = 7057
TEXT_ASCII = 7069
STREAM8 = 7079
IPL_IMAGE = 7103
MATRIX = 7109

ENUM = 7121
FILE = 7127

PORT_TYPES = (ANY, AUTO, INTEGER32, INTEGER64, FLOAT32, FLOAT64, TEXT_ASCII, STREAM8, IPL_IMAGE, MATRIX)
PROPERTY_TYPES = (ENUM, FILE)


class Ioelt(object):
    """One element of a stream: ``data``, and ``ts`` in microseconds."""

    def __init__(self):
        self.ts = 0
        self.data = None


class IplImage(object):
    """An image.

    Attributes:
        image_data: numpy uint8, rows x columns [x channels].
        color_model: "COLR" or "MONO".
        channel_seq: "BGR", "RGB", "BGRA", "RGBA", "GRAY", ...
    """

    def __init__(self, image_data=None, color_model="", channel_seq=""):
        self.image_data = image_data
        self.color_model = color_model
        self.channel_seq = channel_seq
