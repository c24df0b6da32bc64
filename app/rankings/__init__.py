"""Rankings: the answer: checked, immutable, superseded; drafts."""
