"""The program `rankloop`: a thin door to the commands of `app` and `trainer`, which never import each other,
and what both need.
"""

__version__ = "0.1.0"
