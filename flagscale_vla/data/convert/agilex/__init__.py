"""RoboBrain-X0's AgileX recordings: annotation JSON, HDF5 and mp4."""
