"""The statistics of many keys as one object; and norms of streams and series, which are not fitted once."""
