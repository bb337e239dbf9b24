"""What samples are compared in: feature networks (`networks`), one that is trained for a data set (`classifier`), and the rows
that they are compared with (`reference`).
"""
