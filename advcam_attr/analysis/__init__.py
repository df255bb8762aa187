"""The paper's figures from climbs and from evaluations of seeds."""
