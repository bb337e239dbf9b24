"""Readers of encoded images, decoded by Pillow in threads.

decode      an encoded image becomes an array, and how all of a data set do: size, grey or colour, background, orientation
folder      a folder of image files
    tree        the splits and classes of files by the names of their folders
parquet     Hugging Face's image Parquet
"""

from pipelines.data.readers.images.folder import read_folder
from pipelines.data.readers.images.parquet import read_image_parquet

__all__ = ["read_folder", "read_image_parquet"]
