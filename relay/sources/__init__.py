"""The sources: what turns input into published events. Each owns one kind of input; none touches a stream."""
