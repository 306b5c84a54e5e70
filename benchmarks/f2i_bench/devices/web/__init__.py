"""A phone's browser as a device: a server, a page that measures, and the judgement of what comes back."""
