"""The processes of one run: how they are launched, find each other, and tell that they live."""
