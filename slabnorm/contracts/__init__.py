"""The statistics of many keys as one object, and norms of inputs that are not fitted once: streams and series."""
