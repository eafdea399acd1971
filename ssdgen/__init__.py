"""ssdgen: a generator of Mamba-2 (SSD) kernels.  Holds the version only, so that `import mamba2_ops` stays light."""

__version__ = "0.1.0"
