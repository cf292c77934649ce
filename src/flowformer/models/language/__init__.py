"""Language models: blocks around any mixer, with a state in place of a growing cache."""
