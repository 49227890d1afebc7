"""Report text: sections, sentences, and the 14 findings each sentence tells."""
