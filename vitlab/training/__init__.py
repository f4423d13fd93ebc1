"""One Learner, one fit: how a network is trained, whatever the method."""
