"""Run folders: map stores, sharding, provenance and stages."""
