"""The labeler service: one durable queue of questions to people and machines, and the ways to answer them."""
