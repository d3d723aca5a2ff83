"""``mace-train doctor``: is this a place where a training would run well?"""
