"""The translator's step decoder against the network on whole prefixes."""

import torch

from quintet.papers.rare_events.decoding import TranslationStepDecoder
from quintet.papers.rare_events.translator import Translator, TranslatorConfig

BOS = 1


def test_rows_follow_their_sentences_whatever_is_selected():
    """Rows are repeated, dropped and reordered; each must go on as its own prefix of its own sentence."""
    torch.manual_seed(0)
    network = Translator(TranslatorConfig(width=8, decoder_layers=3), 12, 9).eval()
    source, length = torch.randint(3, 12, (3, 6)), torch.tensor([6, 3, 5])
    with torch.no_grad():
        decoder = TranslationStepDecoder(network, network.encoder(source, length), lambda out, _: network.logits(out))
        state, sentence, prefix = decoder.start(), torch.arange(3), torch.full((3, 1), BOS)
        for rows in ([0, 0, 1, 2, 2], [1, 0, 3, 2], [0, 1, 2, 3], [3], [0, 0]):
            log_nv, state = decoder.step(prefix[:, -1], state)
            output, _ = network(source[sentence], length[sentence], prefix)
            torch.testing.assert_close(log_nv, network.logits(output[:, -1]).log_softmax(1), rtol=1e-4, atol=1e-5)
            row_n = torch.tensor(rows)
            state, sentence = decoder.select(state, row_n), sentence[row_n]
            prefix = torch.cat([prefix[row_n], torch.randint(3, 9, (len(rows), 1))], 1)
