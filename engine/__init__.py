"""The machinery behind both programs. Nothing in here knows the programs or the method."""
