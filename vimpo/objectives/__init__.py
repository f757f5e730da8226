"""The three objectives as pure functions.

Shapes: B responses of at most T tokens, right-padded; mask is 1 on response tokens, including EOS.
gamma is 1 throughout. `groups` holds one integer per response, equal for rollouts of one prompt.
"""
