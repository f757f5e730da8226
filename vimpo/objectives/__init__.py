"""The three objectives as pure functions, and the small objects that the training loop calls.

Shapes: B responses of at most T tokens, right-padded; mask is 1 on response tokens, EOS included.
gamma is 1 throughout. `groups` holds one integer a response, equal for rollouts of one prompt.
"""
