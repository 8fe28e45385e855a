"""Where clips come from. A source is one small class; see ``base.py``."""
