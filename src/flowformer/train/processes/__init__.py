"""Several processes of one run: who they are, who is lost, and how they are started."""
