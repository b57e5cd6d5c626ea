"""What an assignment checks: properties of an implementation, one module a paper; each raises with a sentence."""
