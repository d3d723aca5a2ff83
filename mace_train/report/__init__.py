"""One page about a training: learning, errors, balance, settings; for people to look at."""
