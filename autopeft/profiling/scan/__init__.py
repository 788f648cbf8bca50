"""One streaming pass over a data set: blocks of rows go to workers, mergeable facts come back in order."""
