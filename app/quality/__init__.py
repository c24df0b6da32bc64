"""What rankings are worth: agreement, annotators, consensus, adjudication, bias."""
