"""Certificates by randomised smoothing: the statistics (``smoothing``), the draws (``sampling``), an attack on a
certificate (``adversary``)."""
