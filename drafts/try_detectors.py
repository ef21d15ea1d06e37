"""dev half only: detectors cross-validated by question, with cross-fitted coverage"""
import json, sys, warnings, numpy as np, pandas as pd, pickle, time
from pathlib import Path
warnings.filterwarnings("ignore")
sys.path.insert(0,"/work/i5")
from interviewmate_utils import similarity, errors
from interviewmate_utils.errors import signals, coverage
J=errors.read_judged(); J=J[J.part=="development"].reset_index(drop=True)
items=[signals.Item(*r) for r in J[["answer","question","reference","key_points"]].itertuples(index=False)]
T=signals.Texts(similarity.load_encoder("embedded-minilm"))
c=Path("/tmp/trial/vec.pkl")
if c.exists(): T.known=pickle.load(open(c,"rb"))
allq=[json.loads(l)["question"] for l in open("/work/i5/data/raw/interview_qa.jsonl")]
terms=[t for t in open("/work/i5/data/raw/technical_terms.txt").read().splitlines() if t]
t=time.time(); F=signals.features(items,T,terms,allq); P=coverage.pair_signals(items,T); print("signals",round(time.time()-t))
pickle.dump(T.known,open(c,"wb"))
F.to_pickle("/tmp/trial/F.pkl"); P.to_pickle("/tmp/trial/P.pkl"); J.to_pickle("/tmp/trial/J.pkl")
import sys, warnings, numpy as np, pandas as pd
warnings.filterwarnings("ignore"); sys.path.insert(0,"/work/i5")
from interviewmate_utils import errors
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor
from sklearn.preprocessing import StandardScaler, QuantileTransformer
from sklearn.pipeline import make_pipeline
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.metrics import roc_auc_score, f1_score
from scipy.stats import spearmanr
F,P,J=(pd.read_pickle(f"/tmp/trial/{n}.pkl") for n in "FPJ")
g=J.question_id.to_numpy()
y=np.array([p in J.covered[i] for i,p in P.index]); con=np.array([p in J.contradicted[i] for i,p in P.index]); pg=np.array([g[i] for i,_ in P.index])
cov=make_pipeline(StandardScaler(),LogisticRegression(C=1))
p=cross_val_predict(cov,P.to_numpy(float),y,groups=pg,cv=GroupKFold(10),method="predict_proba")[:,1]
print("coverage auc",round(roc_auc_score(y,p),3),"f1",round(f1_score(y,p>.5),3))
for col in P: print("   ",col,round(roc_auc_score(y,P[col]),3),"contradicted among not covered",round(roc_auc_score(con[~y],P[col][~y]),3))
s=pd.Series(p,index=P.index).groupby("item")
F=F.assign(covered=s.mean(),covered_least=s.min(),covered_most=s.max(),covered_sum=s.sum(), empty=s.mean()*0+np.log1p(F.log_words)-2*s.mean())
Y=pd.DataFrame({c:[any(l["category"]==c for l in ls) for ls in J.labels] for c in errors.CATEGORIES}); good=~Y.any(axis=1).to_numpy()
X=F.to_numpy(float)
def report(name, probs):
    f={};best={}
    for c in Y:
        ts=np.unique(probs[c]); fs=[f1_score(Y[c],probs[c]>=t) for t in ts]; f[c]=max(fs); best[c]=ts[int(np.argmax(fs))]
    acc=np.mean([any(probs.loc[i,c]>=best[c] for c in Y) for i in np.flatnonzero(good)])
    print(name,{c:round(v,2) for c,v in f.items()},"macro",round(np.mean(list(f.values())),3),"form",round(np.mean([f[c] for c in errors.OF_FORM]),3),"falsely",round(acc,2),"auc",{c:round(roc_auc_score(Y[c],probs[c]),2) for c in Y},flush=True)
def cv(make):
    return pd.DataFrame({c:cross_val_predict(make(),X,Y[c],groups=g,cv=GroupKFold(10),method="predict_proba")[:,1] for c in Y})
A=cv(lambda: make_pipeline(QuantileTransformer(n_quantiles=60),LogisticRegression(C=.2,class_weight="balanced",max_iter=3000))); report("log",A)
B=cv(lambda: ExtraTreesClassifier(600,min_samples_leaf=2,max_features=.3,class_weight="balanced",random_state=0)); report("et",B)
report("mean rank",A.rank(pct=True)+B.rank(pct=True))
G=pd.Series(cross_val_predict(ExtraTreesClassifier(600,min_samples_leaf=2,max_features=.3,class_weight="balanced",random_state=0),X,good,groups=g,cv=GroupKFold(10),method="predict_proba")[:,1])
print("good auc",round(roc_auc_score(good,G),3))
for c in list(Y)+["good"]:
    t=Y[c] if c!="good" else pd.Series(good)
    a=sorted(((abs(roc_auc_score(t,F[n])-.5),n,roc_auc_score(t,F[n])) for n in F),reverse=True)[:9]
    print(c,[(n,round(v,2)) for _,n,v in a])
for r in ("accuracy","relevance","completeness","tone"):
    v=np.array([x[r] for x in J.ratings])
    q=cross_val_predict(ExtraTreesRegressor(400,min_samples_leaf=3,max_features=.3,random_state=0),X,v,groups=g,cv=GroupKFold(10))
    print(r,"spearman",round(spearmanr(q,v)[0],3),"covered alone",round(spearmanr(F.covered,v)[0],3))
pd.to_pickle((A,B,Y,good,F),"/tmp/trial/cv.pkl")
