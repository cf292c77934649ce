"""Images with a class each: readers, transforms and mixing."""
