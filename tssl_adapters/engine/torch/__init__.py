"""The engine in torch: any neuron, rule and tensor."""
