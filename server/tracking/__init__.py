"""Those who follow a run as it goes: they are told in order, and what they may log has names."""
