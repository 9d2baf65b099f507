import time
import transformers.modeling_utils
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
T=0
for t in "bert roberta xlm-roberta camembert electra distilbert mpnet modernbert deberta-v2 deberta nomic_bert gte jina_embeddings_v3 eurobert albert ernie megatron-bert roberta-prelayernorm xlm-roberta-xl data2vec-text esm".split():
    s=time.perf_counter()
    try: c=CONFIG_MAPPING[t]
    except KeyError: print(t,"unknown"); continue
    d=time.perf_counter()-s; T+=d
    s=time.perf_counter()
    c2=type("PGB"+c.__name__,(c,),{"model_type":"x"}); T2=time.perf_counter()-s
    print(t, c.__name__, round(d*1e3,1), round(T2*1e3,2))
print(T)
